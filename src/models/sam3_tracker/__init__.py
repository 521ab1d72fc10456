"""SAM 3's tracker: SAM 2.1's classes behind the image encoder that ``transformers`` has of SAM 3."""
