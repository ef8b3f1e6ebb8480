import pytest
from tests.integration.door.conftest import *
async def test_x(kind, contract):
    async with running_door(kind, contract) as r:
        async with client_of(r) as c:
            print(await c.echo(id=3)); print(await c.echo(id=4,cold=True))
            assert await end(r.edge)==0, r.log()
        print(r.log())
