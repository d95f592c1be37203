"""How good samples are: features of images, and the Frechet distance between two sets of them."""
