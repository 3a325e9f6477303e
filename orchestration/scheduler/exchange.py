"""Messages between the workers and the driver, through an actor that takes no CPU.

What is imported here is imported by a process of its own: nothing that is large.
"""

import asyncio

from orchestration.runtime.messages import Message, Order


class Exchange:
    """Keeps the messages of workers until the driver takes them, and the driver's orders until workers ask."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, Message]] = []
        self._arrived = asyncio.Event()
        self._orders: dict[int, asyncio.Future[Order | None]] = {}
        self._leaving = False

    async def tell(self, worker: int, message: Message) -> bool:
        """Leave a message for the driver; returns whether the worker is to go on."""
        self._messages.append((worker, message))
        self._arrived.set()
        return not self._leaving

    async def next_order(self, worker: int) -> Order | None:
        """Wait for the driver's next order to a worker; None: leave."""
        order = await self._order(worker)
        del self._orders[worker]
        return order

    async def swap(self, orders: dict[int, Order | None], leaving: bool, seconds: float) -> list[tuple[int, Message]]:
        """Give orders and take messages; without messages, wait for one, though no longer than so many seconds."""
        self._leaving = leaving
        for worker, order in orders.items():
            self._order(worker).set_result(order)
        if not self._messages:
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except TimeoutError:
                return []
        messages, self._messages = self._messages, []
        self._arrived.clear()
        return messages

    def _order(self, worker: int) -> "asyncio.Future[Order | None]":
        if worker not in self._orders:
            self._orders[worker] = asyncio.get_running_loop().create_future()
        return self._orders[worker]
