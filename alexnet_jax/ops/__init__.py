"""What layers compute, as pure functions on NHWC arrays; the conventions in which codebases differ are arguments."""
