"""A bank of everyday nouns, to ask for what pictures of another kind do not show."""

NOUNS = (
    "person", "car", "dog", "cat", "tree", "chair", "table", "bottle", "book", "cup", "bird", "flower", "house",
    "window", "door", "shoe", "clock", "phone", "bicycle", "boat", "horse", "bag", "plate", "hat",
)  # fmt: skip
