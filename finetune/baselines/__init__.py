"""Networks without SAM that it is compared with, one file each."""
