"""A probe of one feature for every neuron of every layer, all at once."""


def neuron_maps(): ...
