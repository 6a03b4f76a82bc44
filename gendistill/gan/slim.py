from torch import nn
def fold(network): pass
