"""A prediction service as many are written: FastAPI, pydantic, a frame of one row, the pipeline.

Written for the comparison; it loads the pipeline the service's scorer was compiled from. Started
by uvicorn; the skops file is in the environment.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pandas as pd
import skops.io
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from benchmarks.peers.bare import MODEL
from health_predict.experiments import TRUSTED_TYPES


class Encounter(BaseModel):
    """One encounter."""

    race: str
    gender: str
    age: str
    weight: str
    admission_type_id: int
    discharge_disposition_id: int
    admission_source_id: int
    time_in_hospital: int
    payer_code: str
    medical_specialty: str
    num_lab_procedures: int
    num_procedures: int
    num_medications: int
    number_outpatient: int
    number_emergency: int
    number_inpatient: int
    diag_1: str
    diag_2: str
    diag_3: str
    number_diagnoses: int
    max_glu_serum: str
    A1Cresult: str
    metformin: str
    repaglinide: str
    nateglinide: str
    chlorpropamide: str
    glimepiride: str
    acetohexamide: str
    glipizide: str
    glyburide: str
    tolbutamide: str
    pioglitazone: str
    rosiglitazone: str
    acarbose: str
    miglitol: str
    troglitazone: str
    tolazamide: str
    examide: str
    citoglipton: str
    insulin: str
    glyburide_metformin: str = Field(alias="glyburide-metformin")
    glipizide_metformin: str = Field(alias="glipizide-metformin")
    glimepiride_pioglitazone: str = Field(alias="glimepiride-pioglitazone")
    metformin_rosiglitazone: str = Field(alias="metformin-rosiglitazone")
    metformin_pioglitazone: str = Field(alias="metformin-pioglitazone")
    change: str
    diabetesMed: str


class Prediction(BaseModel):
    """What is answered."""

    prediction: int
    probability_score: float


@asynccontextmanager
async def _loaded(app: FastAPI) -> AsyncIterator[None]:
    app.state.pipeline = skops.io.load(os.environ[MODEL], trusted=TRUSTED_TYPES)
    yield


app = FastAPI(title="readmission", lifespan=_loaded)


@app.post("/predict")
def predict(encounter: Encounter, request: Request) -> Prediction:
    """Scores one encounter."""
    pipeline: Any = request.app.state.pipeline
    frame = pd.DataFrame([encounter.model_dump(by_alias=True)])
    try:
        probability = float(pipeline.predict_proba(frame)[0, 1])
    except ValueError as error:
        raise HTTPException(status_code=400, detail="the encounter cannot be scored") from error
    return Prediction(prediction=int(probability >= 0.5), probability_score=probability)
