"""The iSCSI protocol over asyncio: connections, logins and a nexus that reconnects."""
