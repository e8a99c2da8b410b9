"""What the paper, its source, Caffe and a config decide."""
