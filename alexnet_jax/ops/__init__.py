"""The operations of layers as pure functions of NHWC arrays; arguments select the conventions of other codebases."""
