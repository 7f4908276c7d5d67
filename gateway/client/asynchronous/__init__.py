"""The client, asynchronous. `deploy/sync_client.py` makes `gateway.client.synchronous` of it."""
