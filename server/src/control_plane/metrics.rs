//! What sandboxes take of the machine, as E2B's clients read it.

use super::{admission::Caller, error::ApiError};
use crate::{app::SharedApp, channel::request::Operation, metering::samples::Sample};
use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::SystemTime};

#[derive(Debug, Default, Deserialize)]
pub(super) struct Range {
    start: Option<u64>,
    end: Option<u64>,
}

/// `GET /sandboxes/{id}/metrics`, of the last hour, oldest first.
pub(super) async fn of_one(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<Range>, QueryRejection>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let Query(Range { start, end }) = query?;
    let samples: Vec<Sample> = caller.ask(&app, Operation::Samples { id, start, end }).await?;
    Ok(Json(samples.iter().map(shown).collect()))
}

#[derive(Debug, Deserialize)]
pub(super) struct Many {
    sandbox_ids: String,
}

/// `GET /sandboxes/metrics?sandbox_ids=a,b`: the last of each.
pub(super) async fn of_many(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Many>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(Many { sandbox_ids }) = query?;
    let ids = sandbox_ids.split(',').map(str::to_owned).collect();
    let last: BTreeMap<String, Sample> = caller.ask(&app, Operation::LastSamples { ids }).await?;
    let all: Map<String, Value> = last.iter().map(|(id, sample)| (id.clone(), shown(sample))).collect();
    Ok(Json(json!({ "sandboxes": all })))
}

fn shown(sample: &Sample) -> Value {
    let unix = sample.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "timestamp": humantime::format_rfc3339_millis(sample.at).to_string(), "timestampUnix": unix,
        "cpuCount": sample.cpus, "cpuUsedPct": sample.cpu_percent, "memUsed": sample.memory,
        "memTotal": sample.memory_total, "memCache": 0, "diskUsed": sample.disk, "diskTotal": sample.disk_total,
        "networkSent": sample.network.sent, "networkReceived": sample.network.received,
    })
}
