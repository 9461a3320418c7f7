//! `operator-own.json` and `operator-tenants.json` in a home: what its operator provides and permits
//! now, to sandboxes of the operator and to those of tenants. A process that knows it writes it down,
//! and a supervisor holds each record to it before it puts the record in force: so what the operator
//! took back is closed for sandboxes that exist. Allows nothing that a record does not allow.

use crate::home::{directory::DirectoryError, layout::Home, private};
use crate::network::{
    operator::{NetworkOperator, Permitted, Provided},
    record::NetworkRecord,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;

/// Why it is not known what the operator permits.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PresentError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is not valid, or has a part that this build does not know.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Present {
    format: u32,
    provides: Provided,
    #[serde(default)]
    permits: Option<Permitted>,
}

fn path(home: &Home, is_tenants: bool) -> PathBuf {
    home.root().join(if is_tenants { "operator-tenants.json" } else { "operator-own.json" })
}

/// Writes down what the operator of `home` provides and permits, unless the home has it already.
pub(crate) fn write(home: &Home) -> Result<(), DirectoryError> {
    let NetworkOperator { provides, permits, program: _ } = home.network();
    let path = path(home, permits.is_some());
    let present = Present { format: FORMAT, provides: provides.clone(), permits: permits.clone() };
    replace(&path, &present).map_err(|error| DirectoryError::new("write", &path, error))
}

fn replace(path: &Path, present: &Present) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(present)?;
    json.push(b'\n');
    if fs::read(path).is_ok_and(|before| before == json) {
        return Ok(());
    }
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    private::write(&beside, json).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        // The error is about the first step that failed.
        let _ = fs::remove_file(&beside);
    })
}

/// Returns `record` without what the operator of `home` does not provide or permit any more.
pub(crate) fn hold(mut record: NetworkRecord, home: &Home) -> Result<NetworkRecord, PresentError> {
    let path = path(home, record.is_tenants);
    let json = match fs::read(&path) {
        Ok(json) => json,
        // No process of this build has written it yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(record),
        Err(source) => return Err(PresentError::Read { path, source }),
    };
    let present: Present = serde_json::from_slice(&json).map_err(|source| PresentError::Damaged { path, source })?;
    record.operator = record.operator.held_to(&present.provides);
    if let Some(permits) = &present.permits {
        record.settings = permits.narrowed(record.settings);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::spec::{NetworkSpec, tests::rules};
    use sandboxvm_protocol::egress::{EgressLimits, Reach};
    use std::net::IpAddr;

    fn provides(opened: &[&str]) -> Provided {
        Provided { opened: opened.iter().map(|net| net.parse().unwrap()).collect(), ..Provided::default() }
    }

    fn operator(opened: &[&str], permits: Option<Permitted>) -> NetworkOperator {
        NetworkOperator { provides: provides(opened), permits, program: None }
    }

    fn permitted(reach: Reach, allow: &[&str], flows: u32) -> Permitted {
        let limits = EgressLimits { flows, ..EgressLimits::default() };
        Permitted { reach, allow: rules(allow), resolvers: false, proxies: false, limits }
    }

    #[test]
    fn authority_that_the_operator_does_not_trust_any_more_is_not_trusted_for_old_records() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let trusting = |trust: Option<&str>| NetworkOperator {
            provides: Provided { trust: trust.map(PathBuf::from), ..Provided::default() },
            ..NetworkOperator::default()
        };
        let record = NetworkRecord::of(&trusting(Some("/root.pem")), &NetworkSpec::default()).unwrap();
        for present in [None, Some("/other.pem")].map(trusting) {
            let home = home.clone().with_network(present.clone());
            write(&home).unwrap();
            assert_eq!(hold(record.clone(), &home).unwrap().operator, present.provides);
        }
    }

    #[test]
    fn proxy_of_the_operator_of_today_carries_old_sandboxes_and_excludes_those_of_tenants() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let proxy = |text: &str| Some(text.parse().unwrap());
        let may = Permitted { proxies: true, ..permitted(Reach::Public, &[], 7) };
        let spec =
            NetworkSpec { reach: Reach::Public, proxy: proxy("socks5://tenants.example:1"), ..NetworkSpec::default() };
        let own = NetworkRecord::of(&operator(&[], Some(may.clone())), &spec).unwrap();
        let without =
            NetworkRecord::of(&operator(&[], Some(may.clone())), &NetworkSpec { proxy: None, ..spec }).unwrap();
        let held = |permits: Permitted, text: &str| {
            let provides = Provided { proxy: proxy(text), ..Provided::default() };
            let home = home.clone().with_network(NetworkOperator { provides, permits: Some(permits), program: None });
            write(&home).unwrap();
            let held = [&own, &without].map(|record| hold(record.clone(), &home).unwrap());
            held.map(|held| (held.settings.reach, held.proxy().unwrap().0.to_string()))
        };
        let operators = "http://operators.example:2".to_owned();
        let now = held(Permitted { proxies: false, ..may }, &operators);
        assert_eq!(now, [(Reach::Nothing, operators.clone()), (Reach::Public, operators)]);
    }

    #[test]
    fn networks_that_the_operator_closed_are_closed_for_old_records() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let spec = NetworkSpec { reach: Reach::Listed, allow: rules(&["10.0.0.0/8"]), ..NetworkSpec::default() };
        let wide = operator(&["10.0.0.0/8", "192.168.7.0/24"], None);
        let record = NetworkRecord::of(&wide, &spec).unwrap();
        assert_eq!(hold(record.clone(), &home).unwrap(), record, "nothing is written down");
        let held = |present: NetworkOperator| {
            let home = home.clone().with_network(present);
            write(&home).unwrap();
            let held = hold(record.clone(), &home).unwrap();
            assert_eq!(held.settings, record.settings);
            held.operator
        };
        assert_eq!(held(wide.clone()), wide.provides);
        assert_eq!(held(operator(&["10.20.0.0/16", "192.168.0.0/16", "172.16.0.0/12"], None)), {
            provides(&["10.20.0.0/16", "192.168.7.0/24"])
        });
        assert_eq!(held(operator(&[], None)), provides(&[]));
        // What a server permits its tenants is not about sandboxes of the operator.
        let of_tenants = operator(&["10.0.0.0/8"], Some(permitted(Reach::Nothing, &[], 1)));
        assert_eq!(held(of_tenants), provides(&[]));
        fs::write(root.path().join("operator-own.json"), "{").unwrap();
        assert!(hold(record, &home).unwrap_err().to_string().contains("is damaged"));
    }

    #[test]
    fn tenants_lose_what_is_not_permitted_any_more() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let before = Permitted { resolvers: true, ..permitted(Reach::Public, &["host:5432"], 100) };
        let spec = NetworkSpec {
            reach: Reach::Public,
            allow: rules(&["a.example", "b.example", "host:5432"]),
            deny: rules(&["c.example"]),
            dns: vec![IpAddr::from([192, 0, 2, 1])],
            limits: EgressLimits { flows: 100, ..EgressLimits::default() },
            ..NetworkSpec::default()
        };
        let record = NetworkRecord::of(&operator(&[], Some(before)), &spec).unwrap();
        assert_eq!((record.settings.reach, record.settings.limits.flows), (Reach::Public, 100));
        let home = home.with_network(operator(&[], Some(permitted(Reach::Listed, &["*.example:443", "a.example"], 7))));
        write(&home).unwrap();
        let held = hold(record, &home).unwrap();
        assert_eq!(
            held.settings,
            NetworkSpec {
                reach: Reach::Listed,
                allow: rules(&["a.example"]),
                dns: Vec::new(),
                limits: EgressLimits { flows: 7, ..EgressLimits::default() },
                ..spec
            }
        );
    }

    #[test]
    fn manager_writes_down_what_its_operator_permits() {
        let root = tempfile::tempdir().unwrap();
        let manager = || crate::Manager::open(root.path()).unwrap();
        let text = |name: &str| fs::read_to_string(root.path().join(name)).unwrap_or_default();
        let _ = manager().with_network_program("/egress".into());
        assert!(text("operator-own.json").is_empty(), "a supervisor knows only the program");
        let _ = manager().with_network(operator(&["10.0.0.0/8"], None));
        let _ = manager().with_network(operator(&[], Some(permitted(Reach::Listed, &["a.example"], 7))));
        assert!(
            text("operator-own.json").contains("10.0.0.0/8") && text("operator-tenants.json").contains("a.example")
        );
    }
}
