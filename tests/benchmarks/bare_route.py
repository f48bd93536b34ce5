"""The floor of accepting orders: one FastAPI route that writes each body down by one INSERT, and nothing more."""

import os
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from gateway.operations.database import open_database

app = FastAPI()
engine = open_database(os.environ["BARE_DATABASE_URL"], Path(os.environ["BARE_STATE"])).execution_options(
    ledger_writes=True
)
orders = sa.Table(
    "bare_orders",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)


@app.get("/livez")
def livez() -> dict[str, bool]:
    return {"alive": True}


@app.post("/orders", status_code=202)
def accept(body: dict[str, Any]) -> dict[str, str]:
    order_id = str(uuid.uuid4())
    with engine.begin() as connection:
        connection.execute(orders.insert().values(id=order_id, body=body, created=datetime.now(UTC)))
    return {"id": order_id}


if __name__ == "__main__":
    orders.create(engine, checkfirst=True)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
