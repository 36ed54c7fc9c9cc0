"""SimCLR, which pretrains the encoder of a network that SAM is compared with."""
