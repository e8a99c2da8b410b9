"""What the layers compute, as pure functions on NHWC arrays, each convention in which codebases differ made explicit.

Sources: "paper" is Krizhevsky, Sutskever and Hinton, NIPS 2012; "CHM" is the original code and its configurations
(github.com/computerhistory/AlexNet-Source-Code); "CC2" is github.com/akrizhevsky/cuda-convnet2; "Caffe" is
github.com/BVLC/caffe; "torchvision" is github.com/pytorch/vision.
"""
