"""The client, synchronous. All but `waiting` is made of `gateway.client.asynchronous` by `deploy/sync_client.py`."""
