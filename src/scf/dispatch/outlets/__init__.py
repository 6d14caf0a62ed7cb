"""Where releases are published: a folder, S3, the Hugging Face hub, GitHub. One interface."""
