"""What to expect before anything is done: estimates."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.dependencies import Estimates
from app.domain.estimates import EstimateRequest

router = APIRouter(prefix="/v1", tags=["planning"])


@router.post("/estimates")
def create_estimate(body: EstimateRequest, estimates: Estimates) -> dict[str, Any]:
    return estimates.estimate(body)
