"""Published claims, each judged by a record: what holds here, by how much, and how to repeat it."""
