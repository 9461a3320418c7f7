//! Names of signals, as users and images write them.

use sandboxvm_protocol::agent::SignalNumber;

/// Names of the signals from 1 on (signal(7), x86-64).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The first and the last real-time signal of C libraries, which use the two below the first themselves.
const REAL_TIME: (u8, u8) = (34, 64);

/// A text does not name a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a name such as TERM, SIGTERM or SIGRTMIN+3, or a number between 1 and 64")]
pub struct SignalNameError;

/// Returns the signal with a name, in upper or lower case and with or without `SIG`, or with a number from 1
/// to 64. Real-time signals are `RTMIN`, `RTMIN+N`, `RTMAX-N` and `RTMAX`.
///
/// # Errors
/// When the text is none of these.
pub fn signal_by_name(text: &str) -> Result<SignalNumber, SignalNameError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = |text: &str| text.parse::<u8>().ok().filter(|_| is_number(text));
    let found = if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { Some(0) } else { offset.strip_prefix('+').and_then(number) };
        offset.and_then(|offset| REAL_TIME.0.checked_add(offset))
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { Some(0) } else { offset.strip_prefix('-').and_then(number) };
        offset.and_then(|offset| REAL_TIME.1.checked_sub(offset)).filter(|found| *found >= REAL_TIME.0)
    } else {
        number(text).or_else(|| u8::try_from(NAMES.iter().position(|known| *known == name)? + 1).ok())
    };
    found.and_then(|found| SignalNumber::try_from(found).ok()).ok_or(SignalNameError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let known = [
            ("TERM", 15),
            ("sigkill", 9),
            ("SIGHUP", 1),
            ("sys", 31),
            ("64", 64),
            ("USR1", 10),
            ("SIGRTMIN+3", 37),
            ("rtmin", 34),
            ("RTMIN+30", 64),
            ("RTMAX-30", 34),
            ("SIGRTMAX", 64),
        ];
        for (text, number) in known {
            assert_eq!(signal_by_name(text).unwrap().get(), number, "{text}");
        }
        let unknown = [
            "", "SIG", "0", "65", "256", "-9", "+9", "TERM ", "NOPE", "SIG9", "RTMIN+31", "RTMIN-1", "RTMIN++1",
            "RTMAX-31", "RTMAX+0", "RTMIN+",
        ];
        for text in unknown {
            assert_eq!(signal_by_name(text), Err(SignalNameError), "{text}");
        }
    }
}
