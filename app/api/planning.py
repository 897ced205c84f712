"""What to expect before anything is done: estimates and recommendations."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.dependencies import Estimates, Recommendations
from app.domain.estimates import EstimateRequest
from app.domain.recommendation import RecommendationRequest

router = APIRouter(prefix="/v1", tags=["planning"])


@router.post("/estimates")
def create_estimate(body: EstimateRequest, estimates: Estimates) -> dict[str, Any]:
    return estimates.estimate(body)


@router.post("/recommendations")
def create_recommendation(body: RecommendationRequest, recommendations: Recommendations) -> dict[str, Any]:
    return recommendations.recommend(body)
