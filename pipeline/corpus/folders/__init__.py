"""What the folders of other tools say of the files in them: partitions by Hive's naming, and lists of files that count."""
