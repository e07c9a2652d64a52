//! Durations as flags take them.

use std::time::Duration;

/// `500ms`, `30s`, `5m`, `2h` or `1d`; without a unit it is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let of = |factor: u64| {
        let seconds = number.parse::<u64>().ok()?.checked_mul(factor)?;
        Some(Duration::from_secs(seconds))
    };
    let duration = match unit {
        _ if number.is_empty() => return Err(FORM.to_owned()),
        "ms" => number.parse().ok().map(Duration::from_millis),
        "s" | "" => of(1),
        "m" => of(60),
        "h" => of(3600),
        "d" => of(86_400),
        _ => return Err(FORM.to_owned()),
    };
    duration.ok_or_else(|| "the duration is too long".to_owned())
}

const FORM: &str =
    "a duration is a whole number and ms, s, m, h or d, as 30s; without a unit it is seconds";

/// A duration where the API takes whole seconds: a fraction is refused, not
/// dropped.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let duration = duration(text)?;
    if duration.subsec_nanos() != 0 {
        return Err("only whole seconds are taken here".to_owned());
    }
    u32::try_from(duration.as_secs()).map_err(|_| "the duration is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("12"), Ok(Duration::from_secs(12)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("30d"), Ok(Duration::from_hours(720)));
        for wrong in ["", "s", "3x", "-1s", "1.5s", "1 s"] {
            let fault = duration(wrong).unwrap_err();
            assert!(fault.contains("without a unit it is seconds"), "{wrong}: {fault}");
        }
        for long in ["99999999999999999999", "99999999999999999d"] {
            assert_eq!(duration(long), Err("the duration is too long".to_owned()), "{long}");
        }
    }

    #[test]
    fn no_part_of_a_second_is_dropped() {
        assert_eq!((seconds("2000ms"), seconds("1h"), seconds("0ms")), (Ok(2), Ok(3600), Ok(0)));
        for part in ["500ms", "1500ms", "1ms"] {
            assert!(seconds(part).unwrap_err().contains("whole seconds"), "{part}");
        }
        assert!(seconds("4294967296s").unwrap_err().contains("too long"));
    }
}
