"""`pathserve.v1.CatalogService` over the use-cases."""

# Methods have the names of the .proto.
# ruff: noqa: N802

from typing import Any

from gateway.analyses.service import Service
from gateway.grpc import views
from gateway.grpc.admission import caller
from gateway.grpc.proto.pathserve.v1 import catalog_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1.catalog_service_pb2_grpc import CatalogServiceServicer
from gateway.grpc.threads import in_thread


class Catalogue(CatalogServiceServicer):
    """What this server can do now."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ListProtocols(self, request: Any, context: Any) -> Any:
        found = await in_thread(self._service.protocols, caller())
        return pb.ListProtocolsResponse(items=[views.protocol(each) for each in found])

    async def ListModels(self, request: Any, context: Any) -> Any:
        found = await in_thread(self._service.models, caller(), every=request.all)
        return pb.ListModelsResponse(items=[views.model(each) for each in found])

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return views.status(await in_thread(self._service.status, caller()))
