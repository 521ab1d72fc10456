"""The task of concepts: noun phrases asked of images, all instances of each."""
