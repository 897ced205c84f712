"""Comparisons: several methods for one model, measured side by side."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api.dependencies import Comparisons
from app.api.schemas import list_view
from app.domain.comparison import ComparisonRequest
from app.services.reports.formats import write_report

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])


class ReportFormat(StrEnum):
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    HTML = "html"


@router.post("", status_code=201)
def create_comparison(body: ComparisonRequest, comparisons: Comparisons) -> dict[str, Any]:
    return comparisons.submit(body)


@router.get("")
def list_comparisons(
    comparisons: Comparisons,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    found, has_more = comparisons.page(limit=limit, after=after, model=model)
    return list_view(found, has_more)


@router.get("/{comparison_id}")
def get_comparison(comparison_id: str, comparisons: Comparisons) -> dict[str, Any]:
    return comparisons.get(comparison_id)


@router.post("/{comparison_id}/cancel")
def cancel_comparison(comparison_id: str, comparisons: Comparisons) -> dict[str, Any]:
    return comparisons.cancel(comparison_id)


@router.get("/{comparison_id}/report", response_class=Response)
def get_report(
    comparison_id: str,
    comparisons: Comparisons,
    format_: Annotated[ReportFormat, Query(alias="format")] = ReportFormat.HTML,
) -> Response:
    """What has been measured so far, to be read or kept."""
    text, media_type = write_report(comparisons.get(comparison_id), format_.value)
    # A page that is opened from here may do nothing but show itself.
    policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(text, media_type=media_type, headers=policy)
