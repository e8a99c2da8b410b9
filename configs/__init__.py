"""What can be trained: a file a network or experiment, whose get_config() has every key with its default."""
