def replace_convolutions(network, inputs): pass
