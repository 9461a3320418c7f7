//! What sandboxes take of the machine, as E2B's clients read it.

use super::{error::ApiError, views::time};
use crate::{
    access::keys::Key,
    app::SharedApp,
    registry::{entry::Entry, samples::Sample},
};
use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// As E2B's API has it.
const MAX_ASKED: usize = 100;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Range {
    start: Option<u64>,
    end: Option<u64>,
}

/// `GET /sandboxes/{id}/metrics`, of the last hour, oldest first.
pub(super) async fn of_one(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    query: Result<Query<Range>, QueryRejection>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let Query(range) = query?;
    let entry = app.registry.find(&key.id, &id)?;
    app.registry.sample(&entry)?;
    let at = |seconds: Option<u64>| seconds.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s.min(1 << 40)));
    let (start, end) = (at(range.start), at(range.end));
    let within =
        |sample: &Sample| start.is_none_or(|start| sample.at >= start) && end.is_none_or(|end| sample.at <= end);
    Ok(Json(entry.samples().iter().filter(|sample| within(sample)).map(shown).collect()))
}

#[derive(Debug, Deserialize)]
pub(super) struct Many {
    sandbox_ids: String,
}

/// `GET /sandboxes/metrics?sandbox_ids=a,b`: the last of each.
pub(super) async fn of_many(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    query: Result<Query<Many>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(Many { sandbox_ids }) = query?;
    let asked: Vec<&str> = sandbox_ids.split(',').collect();
    if asked.len() > MAX_ASKED {
        return Err(ApiError::bad(format!("invalid sandbox_ids: must have at most {MAX_ASKED} entries")));
    }
    let mut all = Map::new();
    for id in asked {
        let Ok(entry) = app.registry.find(&key.id, id) else { continue };
        app.registry.sample(&entry)?;
        if let Some(last) = last(&entry) {
            all.insert(id.to_owned(), last);
        }
    }
    Ok(Json(json!({ "sandboxes": all })))
}

fn last(entry: &Arc<Entry>) -> Option<Value> {
    entry.samples().last().map(shown)
}

fn shown(sample: &Sample) -> Value {
    let unix = sample.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "timestamp": time(sample.at), "timestampUnix": unix, "cpuCount": sample.cpus,
        "cpuUsedPct": sample.cpu_percent, "memUsed": sample.memory, "memTotal": sample.memory_total, "memCache": 0,
        "diskUsed": sample.disk, "diskTotal": sample.disk_total,
    })
}
