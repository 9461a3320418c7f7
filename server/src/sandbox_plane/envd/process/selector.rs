//! Which process a request is about.

use super::table::Processes;
use crate::sandbox_plane::envd::connect::{Code, ConnectError, json::Number};
use serde::Deserialize;

/// Which process is meant.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Selector {
    pub(super) pid: Option<Number>,
    pub(super) tag: Option<String>,
}

impl Selector {
    pub(super) fn find(selector: Option<&Self>, processes: &Processes) -> Result<u32, ConnectError> {
        match selector {
            Some(Self { pid: Some(Number(pid)), tag: None }) => Ok(*pid),
            Some(Self { pid: None, tag: Some(tag) }) => processes
                .tagged(tag)
                .ok_or_else(|| ConnectError::new(Code::NotFound, format!("process with tag {tag:?} not found"))),
            _ => Err(ConnectError::invalid("the request names no process: a pid or a tag must be selected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_selected_by_one_thing() {
        let processes = Processes::default();
        let find = |text: &str| {
            let selector: Option<Selector> = serde_json::from_str(text).unwrap();
            Selector::find(selector.as_ref(), &processes).map_err(|error| error.code)
        };
        assert_eq!(find(r#"{"pid":7}"#), Ok(7));
        assert_eq!(find(r#"{"tag":"x"}"#), Err(Code::NotFound));
        for wrong in ["null", "{}", r#"{"pid":7,"tag":"x"}"#] {
            assert_eq!(find(wrong), Err(Code::InvalidArgument), "{wrong}");
        }
    }
}
