"""What leaves: samplers in one file, model cards, and the Hugging Face Hub."""
