//! Replaces the recorded settings of a network: first a line in the audit log, then the record. Puts
//! nothing in force.

use super::SuperviseError;
use crate::{
    audit::{AuditError, Event, Trail},
    home::directory::SandboxDirectory,
    network::record::NetworkRecord,
};

/// Writes `record` to `directory`, after a line in the audit log. A record that only narrows what the
/// sandbox reaches is written even if the log takes no line: a full log must not keep a user from
/// restricting a sandbox. Returns why there is no line then.
///
/// # Errors
/// When the log takes no line about another record, or the record cannot be written.
pub(super) fn replace(
    record: &NetworkRecord,
    trail: &Trail,
    directory: &SandboxDirectory,
) -> Result<Option<AuditError>, SuperviseError> {
    let unlogged = match trail.append(Event::network_set(&record.settings)) {
        Ok(_) => None,
        Err(error) if record.only_narrows(directory) => Some(error),
        Err(error) => return Err(error.into()),
    };
    record.write(directory)?;
    Ok(unlogged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manager::tests::manager_with,
        network::{
            operator::{NetworkOperator, Provided},
            spec::NetworkSpec,
        },
    };
    use sandboxvm_protocol::egress::Reach;

    #[test]
    fn restriction_is_recorded_when_the_log_is_full() {
        let (_home, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.with_max_audit_log(1).find("abcdefgh").unwrap();
        let (trail, directory) = (sandbox.trail(), &sandbox.directory);
        let record = |reach, allow: &[&str], opened: &[&str]| {
            let allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
            let opened = opened.iter().map(|net| net.parse().unwrap()).collect();
            let provides = Provided { opened, ..Provided::default() };
            let operator = NetworkOperator { provides, ..NetworkOperator::default() };
            NetworkRecord::of(&operator, &NetworkSpec { reach, allow, ..NetworkSpec::default() }).unwrap()
        };
        let replace = |record: &NetworkRecord| replace(record, &trail, directory);
        let recorded = || NetworkRecord::read(directory).unwrap().unwrap();
        // The first line fits.
        let public = record(Reach::Public, &[], &["10.0.0.0/8"]);
        assert!(replace(&public).unwrap().is_none());
        for wider in [
            record(Reach::Public, &["host:5432"], &["10.0.0.0/8"]),
            record(Reach::Public, &[], &["10.0.0.0/8", "192.168.0.0/16"]),
        ] {
            assert!(matches!(replace(&wider), Err(SuperviseError::Audit(AuditError::Full { .. }))));
            assert_eq!(recorded(), public);
        }
        for narrower in [
            record(Reach::Public, &[], &["10.20.0.0/16"]),
            record(Reach::Listed, &["a.example"], &[]),
            record(Reach::Nothing, &["b.example"], &["10.0.0.0/8"]),
        ] {
            assert!(matches!(replace(&narrower), Ok(Some(AuditError::Full { .. }))), "{narrower:?}");
            assert_eq!(recorded(), narrower);
        }
        assert!(replace(&public).is_err());
        // A record that cannot be read lets nothing pass, and only this is as narrow.
        directory.replace("network.json", b"{").unwrap();
        assert!(replace(&record(Reach::Listed, &[], &[])).is_err());
        replace(&record(Reach::Nothing, &[], &[])).unwrap();
    }
}
