"""Hard negatives: documents that look like answers and are none, found by a model, filtered, and audited."""
