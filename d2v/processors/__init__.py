"""Raw examples to what the models read, and back: audio, text, images. Files are Hugging Face's formats."""
