"""The fossil vault: records with identities, in signed shards, behind a journal."""
