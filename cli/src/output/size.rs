//! Sizes for people.

/// Returns a number of bytes with one decimal and a unit.
pub(crate) fn of(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn sizes_have_a_unit() {
        let sizes = [0, 1023, 1536, 1 << 20, 3 << 29, 5 << 50].map(of);
        assert_eq!(sizes, ["0 bytes", "1023 bytes", "1.5 KiB", "1.0 MiB", "1.5 GiB", "5120.0 TiB"]);
    }
}
