# Two commands do all set-up: `make demo` and `make test`. Both make .venv when it is missing and do nothing twice.
PYTHON ?= python3
# Processes of one thread each that run the tests.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The environment of the lowest versions, with the lowest Python that is installed.
LOWEST := .venv-lowest
LOWEST_PYTHON ?= $(shell for python in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python3.10 python3.11 $(PYTHON); do \
	$$python --version >/dev/null 2>&1 && echo $$python && break; done)
# The main job: every method, sampling, exports, opening in diffusers.
LOWEST_TESTS := tests/test_versions.py tests/export tests/schedulers tests/losses \
	$(addprefix tests/training/test_,mixed_precision.py no_waiting.py precision_matrix.py trainer.py) \
	$(addprefix tests/samplers/test_,families.py few_step.py missing_weights.py single_file.py solvers.py spec.py) \
	$(addprefix tests/run/test_,alignment_runs.py distill.py distill_gan.py family_runs.py halving_runs.py precision_runs.py)

.PHONY: demo full progressive align int8 half decoder gan compare bench test test-lowest test-slow test-installed lint format docs \
	docs-serve assets clean browser students-of-tiny-sd3

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)  ## distill tiny-sd, or TEACHER=assets/tiny-sd3, into a 4-step student in minutes, and report on it
	$(BIN)/gendistill demo --out runs/demo $(if $(TEACHER),--set teacher=$(TEACHER) --set guidance.scale=2 \
		--set dtype=bfloat16 --set trainer.mixed_precision=bf16)
	@echo "'make full' trains for longer."

full: $(READY)  ## the same with more steps, larger batches and a falling learning rate
	$(BIN)/gendistill distill --config configs/full.yaml --out runs/full $(if $(wildcard runs/full/checkpoints),--resume)
	$(BIN)/gendistill evaluate runs/full/student --caption subcategory --out runs/full

progressive: $(READY)  ## tiny-sd halved from 64 steps to 1, with a guidance slider: hours
	$(BIN)/gendistill distill --config configs/progressive.yaml --out runs/progressive $(if $(wildcard runs/progressive/stages),--resume)
	$(BIN)/gendistill evaluate runs/progressive --caption subcategory

align: $(READY)  ## tiny-sd into one student of 4, 2 and 1 steps that generates the teacher's own latents
	$(BIN)/gendistill distill --config configs/alignment.yaml --out runs/alignment $(if $(wildcard runs/alignment/checkpoints),--resume)
	$(BIN)/gendistill evaluate runs/alignment/student --caption subcategory --out runs/alignment

int8: $(READY)  ## the student of `make align`, taught to compute in 8 bits
	$(BIN)/gendistill distill --config configs/int8.yaml --out runs/int8 $(if $(wildcard runs/int8/checkpoints),--resume)
	$(BIN)/gendistill evaluate runs/int8/student --caption subcategory --out runs/int8

half: $(READY)  ## tiny-sd with half of its multiply-accumulates, in 50 steps
	$(BIN)/gendistill distill --config configs/compression.yaml --out runs/half $(if $(wildcard runs/half/checkpoints),--resume)
	$(BIN)/gendistill evaluate runs/half/student --caption subcategory --out runs/half

decoder: $(READY)  ## a tiny decoder of tiny-sd, in two runs
	$(BIN)/gendistill distill --config configs/decoder.yaml --out runs/decoder-first \
		$(if $(wildcard runs/decoder-first/checkpoints),--resume)
	$(BIN)/gendistill distill --config configs/decoder-finish.yaml --out runs/decoder $(if $(wildcard runs/decoder/checkpoints),--resume)

gan: $(READY)  ## tiny-gan with a quarter of its multiply-accumulates and parameters
	$(BIN)/gendistill distill --config configs/gan.yaml --out runs/gan $(if $(wildcard runs/gan/checkpoints),--resume)
	$(BIN)/gendistill evaluate runs/gan/student --caption category --out runs/gan

bench: $(READY)  ## a training step beside its network calls; FID beside clean-fid and torch-fidelity; sampling: an hour
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/bench_metrics.py
	$(BIN)/python benchmarks/bench_sampler.py
	$(BIN)/python benchmarks/bench_quantization.py

compare: $(READY)  ## tiny-sd and the students of `make full` and `make progressive` side by side
	$(BIN)/gendistill compare assets/tiny-sd runs/full/student runs/progressive --caption subcategory -w 2 \
		--solver dpm-solver++ --out runs/compare

# A process that dies ends the run, which names its test.
test: $(READY)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --max-worker-restart 0

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e ".[data,evaluate,gan,openvino]" packaging pytest pytest-xdist tensorboard tomli
	touch $(LOWEST)/.ready

test-lowest: $(READY) $(LOWEST)/.ready  ## the main job with the lowest versions that pyproject.toml declares, beside the newest
	OTHER_PYTHON=$(CURDIR)/$(BIN)/python $(LOWEST)/bin/pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 $(LOWEST_TESTS)

# torchao is kept aside: where it is installed, diffusers and torch warn in every process.
test-slow: $(READY)
	$(BIN)/pytest -m slow --ignore tests/samplers/test_int8_torchao.py
	test -d .cache/torchao || \
		$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target .cache/torchao torchao
	PYTHONPATH=.cache/torchao $(BIN)/pytest -m slow tests/samplers/test_int8_torchao.py

test-installed: $(READY)  ## the commands of the README from a wheel, in an empty folder, as another user: minutes
	$(BIN)/pytest -m slow tests/test_installation.py

browser:  ## what the tests of the web page need; they are skipped without it
	command -v chromium-headless-shell || command -v chromium || command -v google-chrome || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell; }

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build  # mypy does not follow editable installs
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/installed .
	cd build/installed && ../../$(BIN)/mypy -p gendistill --config-file ../../pyproject.toml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation, into build/site; a broken link or an undocumented public name is an error
	rm -rf build
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/installed .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(READY)  ## the documentation at http://127.0.0.1:8000, built anew when a page changes
	$(BIN)/mkdocs serve

, := ,
# Students of tiny-sd3, in bfloat16; repeated after an interruption, it resumes.
SD3 := --set teacher=assets/tiny-sd3 --set data.path='runs/recipes/emoji-64/train-*.tar.gz' --set guidance.scale=2 \
	--set dtype=bfloat16 --set trainer.mixed_precision=bf16
SD3_ALIGNED := --config configs/alignment.yaml $(SD3) --set align.trajectories=12288
ON_POLICY := --set align.distribution.patches=1 --set align.on_policy_fraction
sd3 = $(BIN)/gendistill distill $(2) --out runs/tiny-sd3/$(1) $(if $(wildcard runs/tiny-sd3/$(1)/config.yaml),--resume)

students-of-tiny-sd3: $(READY)  ## of alignment, consistency and progressive distillation: 2.5 hours on a CPU core
	test -d runs/recipes/emoji-64 || $(BIN)/python scripts/recipes/emoji_data.py --resolution 64 --out runs/recipes/emoji-64
	$(call sd3,first,$(SD3_ALIGNED) --set trainer.max_steps=2400 --set trainer.validate_every=600)
	$(call sd3,second,$(SD3_ALIGNED) --set start=runs/tiny-sd3/first/student $(ON_POLICY)=0.3 --set trainer.learning_rate=1e-4 \
		--set trainer.max_steps=700 --set trainer.validate_every=350)
	$(call sd3,alignment,$(SD3_ALIGNED) --set start=runs/tiny-sd3/second/student $(ON_POLICY)=0.5 \
		--set trainer.learning_rate=1.5e-4 --set trainer.max_steps=1000 --set trainer.validate_every=500)
	$(call sd3,consistency,--config configs/demo.yaml $(SD3) --set solvers=[lcm] --set trainer.max_minutes=12 \
		--set trainer.max_steps=520 --set trainer.validate_every=260 --set trainer.num_solver_images=0)
	$(call sd3,progressive,--config configs/progressive.yaml $(SD3) --set guidance.mode=baked --set trainer.batch_size=32 \
		--set progressive.start_steps=32 --set progressive.stages="{guidance_distillation: {max_steps: 600}$(,) \
		16: {max_steps: 300}$(,) 8: {max_steps: 500}$(,) 4: {max_steps: 2600}$(,) 2: {max_steps: 900}$(,) 1: {max_steps: 600}}")
	for student in alignment/student consistency/student progressive; do \
		$(BIN)/gendistill evaluate runs/tiny-sd3/$$student --caption subcategory --dtype bfloat16 || exit; done

assets: $(READY)  ## make assets/ again: hours; each recipe resumes
	$(BIN)/python scripts/recipes/emoji_data.py
	$(BIN)/python scripts/recipes/emoji_features.py
	$(BIN)/python scripts/recipes/tiny_clip.py
	$(BIN)/python scripts/recipes/tiny_vae.py
	$(BIN)/python scripts/recipes/tiny_sd.py --out runs/recipes/tiny-sd/pipeline
	$(BIN)/python scripts/recipes/tiny_sd.py --init runs/recipes/tiny-sd/pipeline --run runs/recipes/tiny-sd-2 --seed 4 \
		--steps 8400 --learning-rate 8e-4 --level-probabilities 0.5 0.25 0.1
	$(BIN)/gendistill evaluate assets/tiny-sd --caption subcategory
	$(BIN)/python scripts/recipes/emoji_data.py --resolution 64 --out runs/recipes/emoji-64
	$(BIN)/python scripts/recipes/tiny_vae.py --pipeline tiny-sd3 --images runs/recipes/emoji-64 --init assets/tiny-sd/vae \
		--run runs/recipes/tiny-sd3-vae --steps 16000 --batch 4 --learning-rate 8e-4
	$(BIN)/python scripts/recipes/tiny_sd3.py
	$(BIN)/gendistill evaluate assets/tiny-sd3 --caption subcategory
	$(BIN)/python scripts/recipes/tiny_gan.py  # hours on a CPU, minutes on a GPU
	$(BIN)/gendistill evaluate assets/tiny-gan --caption category

clean:
	rm -rf runs .cache
