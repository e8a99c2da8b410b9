"""Networks of blocks that compile in seconds: all kinds of blocks, with few features."""

from alexnet_jax.models.presets import read_presets

NARROW = read_presets("""
[vgg]
pool_size = 2
dropout_convention = "inverted"
vgg = { convolutions = [1, 1, 2], widths = [4, 8, 8], hidden = 16 }
[resnet]
pool_pad = 1
residual = { blocks = [1, 2], widths = [4, 8] }
[bottlenecks]
pool_pad = 1
residual = { blocks = [1, 2], widths = [4, 8], bottleneck = true }
[googlenet]
pool_ceil = true
bn_epsilon = 0.001
dropout_rate = 0.0
dropout_convention = "inverted"
[googlenet.inception]
pooled_before = { 4a = ["max", 2, 2, 0] }
auxiliary_after = { 4a = "aux1" }
modules = { 3a = [4, 3, 6, 2, 3, 5], 4a = [4, 3, 6, 2, 3, 5], 4b = [4, 3, 6, 2, 3, 5] }
""")
