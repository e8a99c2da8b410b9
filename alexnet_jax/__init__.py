"""AlexNet in JAX and Flax, as it was published in 2012 and as its source really ran it."""
