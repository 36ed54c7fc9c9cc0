"""A pretrained encoder for others: in the forms of other libraries, and on the Hugging Face Hub."""
