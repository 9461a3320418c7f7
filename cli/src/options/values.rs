//! Parsers of values of options and variables: names, sizes, times and limits. Errors say what is expected. Reads nothing but
//! its argument; the options themselves are in `options`, `limit_options` and the commands.

use parse_size::{Config, Error};
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{
    CpuShare, DiskOperations, DiskRate, FileCount, MemorySize, OutputRate, ProcessCount, SandboxName, SignalNumber,
    VcpuCount, VolumeName, signal_by_name,
};
use std::{ffi::OsString, fmt::Display, time::Duration};

/// Returns a value as it appears in a message: shortened, and without control characters.
pub(crate) fn shortened(value: &OsString) -> String {
    let text = value.to_string_lossy();
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

pub(crate) fn signal(text: &str) -> Result<SignalNumber, String> {
    signal_by_name(text).map_err(|error| error.to_string())
}

pub(crate) fn name(text: &str) -> Result<SandboxName, String> {
    SandboxName::try_from(text.to_owned()).map_err(|error| error.to_string())
}

pub(crate) fn volume_name(text: &str) -> Result<VolumeName, String> {
    VolumeName::try_from(text.to_owned()).map_err(expected)
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    Config::new().with_binary().parse_size(text).map_err(|error| match error {
        Error::PosOverflow => "the size is too large".to_owned(),
        _ => "expected a size such as 512M or 2G".to_owned(),
    })
}

pub(crate) fn memory(text: &str) -> Result<MemorySize, String> {
    MemorySize::try_from(size(text)?).map_err(expected)
}

pub(crate) fn disk(text: &str) -> Result<DiskSize, String> {
    DiskSize::try_from(size(text)?).map_err(expected)
}

pub(crate) fn vcpus(text: &str) -> Result<VcpuCount, String> {
    let number: u32 = text.parse().map_err(|_| format!("expected a number between 1 and {}", VcpuCount::MAX))?;
    VcpuCount::try_from(number).map_err(expected)
}

/// Parses `30s`, `5m` or `1h 30m`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|_| "expected a time such as 30s or 5m".to_owned()),
    }?;
    if parsed.is_zero() { Err("the time must be longer than zero".into()) } else { Ok(parsed) }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

pub(crate) fn pids(text: &str) -> Result<ProcessCount, String> {
    ProcessCount::try_from(number(text)?).map_err(expected)
}

pub(crate) fn files(text: &str) -> Result<FileCount, String> {
    FileCount::try_from(number(text)?).map_err(expected)
}

pub(crate) fn share(text: &str) -> Result<CpuShare, String> {
    let percent = text.strip_suffix('%').unwrap_or(text);
    let percent = percent.parse::<u32>().map_err(|_| "expected a percentage such as 50% or 150%".to_owned())?;
    CpuShare::try_from(percent).map_err(expected)
}

pub(crate) fn output_rate(text: &str) -> Result<OutputRate, String> {
    OutputRate::try_from(rate(text)?).map_err(expected)
}

pub(crate) fn disk_rate(text: &str) -> Result<DiskRate, String> {
    DiskRate::try_from(rate(text)?).map_err(expected)
}

fn rate(text: &str) -> Result<u64, String> {
    size(text.strip_suffix("/s").unwrap_or(text))
}

pub(crate) fn disk_operations(text: &str) -> Result<DiskOperations, String> {
    let count = text.parse::<u64>().map_err(|_| "expected a whole number".to_owned())?;
    DiskOperations::try_from(count).map_err(expected)
}

/// Returns what a type of the library expects of a value, without the value, which the argument parser shows.
fn expected(error: impl Display) -> String {
    let message = error.to_string();
    message.rsplit_once(": ").map_or(message.clone(), |(_, expected)| expected.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_errors_state_the_range() {
        assert_eq!(memory("512M").unwrap().mib(), 512);
        assert_eq!(memory("1g").unwrap().mib(), 1024);
        assert_eq!(disk("2GiB").unwrap(), DiskSize::DEFAULT);
        assert!(memory("0").unwrap_err().contains("between 64 MiB and 64 GiB"));
        assert!(memory("lots").unwrap_err().contains("512M"));
        assert!(vcpus("0").unwrap_err().contains("between 1 and 8"));
        assert!(vcpus("9").unwrap_err().contains("between 1 and 8"));
        assert!(vcpus("two").unwrap_err().contains("between 1 and 8"));
        assert!(name("a\nb").unwrap_err().contains("\\n"));
    }

    #[test]
    fn times_are_parsed_with_and_without_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("0").is_err() && duration("soon").is_err());
    }

    #[test]
    fn limits_outside_their_range_are_rejected() {
        assert_eq!(pids("256").unwrap().get(), 256);
        assert!(pids("0").unwrap_err().contains("between 1 and 30000"));
        assert!(pids("-1").is_err() && pids("many").is_err());
        assert!(files("7").unwrap_err().contains("between 8 and 1048576"));
        assert_eq!(share("50%"), share("50"));
        assert_eq!(share("150%").unwrap().percent(), 150);
        assert!(share("0%").unwrap_err().contains("between 1% and 6400%"));
        assert!(share("half").unwrap_err().contains("50%"));
        assert_eq!(output_rate("1M/s"), output_rate("1MiB"));
        assert_eq!(output_rate("256k").unwrap().bytes_per_second(), 256 << 10);
        assert!(output_rate("255K").unwrap_err().contains("between 256 KiB and 64 GiB"));
        assert!(output_rate("fast").unwrap_err().contains("512M"));
        assert_eq!(disk_rate("1M/s").unwrap().bytes_per_second(), 1 << 20);
        assert!(disk_rate("1K").unwrap_err().contains("between 256 KiB and 64 GiB"));
        assert_eq!(disk_operations("500").unwrap().per_second(), 500);
        assert!(disk_operations("9").unwrap_err().contains("between 10 and 10000000"));
        assert!(disk_operations("-1").is_err() && disk_operations("1M").is_err());
    }
}
