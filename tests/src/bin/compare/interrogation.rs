//! Runs rogues in one contender, run by run, and judges what they found.

use crate::{
    contenders::Contender,
    guard::Guard,
    probes::{self, Judged, Probe, RUNS, Situation, not_run},
    scene::Scene,
};
use rustix::fs::statvfs;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fs, time::Duration};

/// Longest time for one rogue, including the start of its sandbox.
const DEADLINE: Duration = Duration::from_secs(240);

/// Verdicts by the ID of the probe.
pub type Verdicts = BTreeMap<&'static str, Judged>;

/// Runs all probes in a contender that was prepared.
pub fn interrogate(contender: &mut dyn Contender, scene: &mut Scene, guard: &Guard, wanted: &[&Probe]) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let mut identity = Value::Null;
    let file = scene_name(contender.name());
    for run in RUNS {
        let rows: Vec<&&Probe> = wanted.iter().filter(|probe| run.contains(&probe.id)).collect();
        let leaves = run.contains(&"leave") && wanted.iter().any(|probe| probe.id == "found");
        let identifies = run.contains(&"identity") && !wanted.is_empty();
        if rows.is_empty() && !leaves && !identifies {
            continue;
        }
        if let Err(error) = scene.renew() {
            rows.iter().for_each(|probe| drop(verdicts.insert(probe.id, not_run(&error))));
            continue;
        }
        let mut asked: Vec<&str> = run
            .iter()
            .copied()
            .filter(|id| *id == "identity" || (*id == "leave" && leaves) || rows.iter().any(|probe| probe.id == *id))
            .collect();
        if contender.own_kernel() {
            // The guest's own system calls say nothing about those of the host. The monitor's do.
            asked.retain(|id| *id != "surface");
        }
        eprintln!("compare: {}: {}", contender.name(), asked.join(", "));
        let script = scene.script(&file, &asked);
        let (mut facts, problem) = match contender.run(guard, &script, DEADLINE * sandboxvm_tests::cli::patience()) {
            Ok(ended) => {
                let facts = facts(&ended.out);
                let whole = ended.out.contains("@@done");
                (facts, if whole { None } else { Some(ended.reason()) })
            }
            Err(error) => (Map::new(), Some(error)),
        };
        if contender.own_kernel() && run.contains(&"surface") {
            facts.insert("surface".to_owned(), Value::Null);
        }
        if let Some(said) = facts.get("identity") {
            identity = said.clone();
        }
        let situation = situation(contender, scene, guard, &identity, problem.clone());
        for probe in rows {
            let mut judged = match (facts.get(probe.id), &problem) {
                (None, Some(problem)) => not_run(&format!("the sandbox ended before this probe: {problem}")),
                (found, _) => probe.judge(found, &situation),
            };
            if let Some(remark) = contender.remark(probe.id) {
                judged.seen = format!("{}. {remark}", judged.seen);
            }
            verdicts.insert(probe.id, judged);
        }
    }
    verdicts
}

/// Returns the name of a contender for use in file names.
pub fn scene_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
}

fn situation(
    contender: &mut dyn Contender,
    scene: &Scene,
    guard: &Guard,
    identity: &Value,
    ended: Option<String>,
) -> Situation {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Situation {
        kernel: format!("{} {}", read("/proc/sys/kernel/osrelease"), read("/proc/sys/kernel/version")),
        own_kernel: contender.own_kernel(),
        uts: fs::read_link("/proc/self/ns/uts").map(|link| link.display().to_string()).unwrap_or_default(),
        secret: scene.secret().to_owned(),
        file_system: statvfs(scene.path()).map(|room| room.f_blocks * room.f_frsize).unwrap_or(0),
        identity: identity.clone(),
        ended,
        bait_lives: scene.bait_lives(),
        precious: scene.precious_is_whole(),
        peak: guard.peak(),
        monitor: contender.monitor().map(|monitor| (monitor.allowed, monitor.how)),
    }
}

/// Returns the lines `@@{...}` of a rogue's output. A bomb reports its progress more than once.
fn facts(out: &str) -> Map<String, Value> {
    let mut all = Map::new();
    for line in out.lines().filter_map(|line| line.trim().strip_prefix("@@")) {
        if let Ok(Value::Object(found)) = serde_json::from_str(line) {
            for (probe, facts) in found {
                match probe.strip_suffix(".killed") {
                    Some(of) => {
                        let said = all.entry(of.to_owned()).or_insert_with(|| Value::Object(Map::new()));
                        if let Value::Object(said) = said {
                            said.insert("killed".to_owned(), facts);
                        }
                    }
                    None => drop(all.insert(probe, facts)),
                }
            }
        }
    }
    all
}

/// Returns the probes with these IDs, or all. An unknown ID is an error.
pub fn chosen(ids: &[String]) -> Result<Vec<&'static Probe>, String> {
    if ids.is_empty() {
        return Ok(probes::ALL.iter().collect());
    }
    let find = |id: &String| {
        let known = || probes::ALL.iter().map(|probe| probe.id).collect::<Vec<_>>().join(", ");
        probes::ALL
            .iter()
            .find(|probe| probe.id == id)
            .ok_or_else(|| format!("there is no probe {id:?}; there are: {}", known()))
    };
    ids.iter().map(find).collect()
}
