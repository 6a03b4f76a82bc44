"""Images whose captions begin with a trigger word, the name of what a model learns from them."""

from collections.abc import Iterator

from gendistill.data.samples import Entry, ImageSource
from gendistill.runtime.hashing import HashMemo


class TriggeredImages(ImageSource):
    """The images of a source; a caption is `TRIGGER CAPTION`, or the trigger word alone where the source has none.

    Args:
        source: the images.
        trigger: the word.
    """

    def __init__(self, source: ImageSource, trigger: str) -> None:
        super().__init__(source.choice, (source.read_as, trigger))
        self.source, self.trigger, self.seen = source, trigger, source.seen

    def caption_of(self, entry: Entry) -> str:
        return f"{self.trigger} {self.source.caption_of(entry)}".strip()

    def entries(self) -> Iterator[Entry]:
        return self.source.entries()

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        return self.source.contents(hashes)

    def named(self) -> str:
        return f"{self.source.named()}, trigger {self.trigger!r}"
