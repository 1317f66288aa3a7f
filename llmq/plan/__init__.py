"""Headers and a recipe in, a sized plan out."""

from llmq.plan.build import build_plan
from llmq.plan.plan import Plan, TensorPlan
from llmq.plan.targets import TARGETS

__all__ = ["TARGETS", "Plan", "TensorPlan", "build_plan"]
