//! Python's `strftime` for chat templates that put today's date into the prompt. Times are UTC and names English, so that
//! a prompt does not depend on the server's settings.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, split up.
struct Parts {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    day_of_year: i64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// `when` in the format; directives that are not known stay as they are.
pub(super) fn strftime(format: &str, when: SystemTime) -> String {
    let parts = Parts::of(when);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            // As glibc: no leading zero.
            Some('-') => match chars.next() {
                Some(directive) => {
                    let text = parts.directive(directive);
                    let trimmed = text.trim_start_matches(['0', ' ']);
                    out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
                }
                None => out.push_str("%-"),
            },
            Some(directive) => out.push_str(&parts.directive(directive)),
            None => out.push('%'),
        }
    }
    out
}

impl Parts {
    fn of(when: SystemTime) -> Self {
        let seconds = when.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
        let (year, month, day) = civil(days);
        Self {
            year,
            month,
            day,
            weekday: ((days + 4) % 7) as usize, // 1970-01-01 was a Thursday
            day_of_year: days - days_before_year(year) + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    fn directive(&self, directive: char) -> String {
        let (day, month) = (DAYS[self.weekday], MONTHS[self.month - 1]);
        let hour12 = (self.hour + 11) % 12 + 1;
        match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.into(),
            'b' | 'h' => month[..3].into(),
            'A' => day.into(),
            'a' => day[..3].into(),
            'w' => self.weekday.to_string(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour12:02}"),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.into(),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'Z' => "UTC".into(),
            'z' => "+0000".into(),
            '%' => "%".into(),
            'n' => "\n".into(),
            't' => "\t".into(),
            other => format!("%{other}"),
        }
    }
}

/// Year, month (1-12) and day of a day number since 1970-01-01.
fn civil(days: i64) -> (i64, usize, i64) {
    // Years that start in March put the leap day last; see Hinnant, "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as usize, day)
}

/// Days from 1970-01-01 to the first day of the year.
fn days_before_year(year: i64) -> i64 {
    let before = year - 1;
    365 * year + before / 4 - before / 100 + before / 400 - 719_527
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, format: &str) -> String {
        strftime(format, UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn known_moments() {
        // Expected values from Python: datetime.fromtimestamp(s, timezone.utc).strftime(f)
        assert_eq!(at(0, "%Y-%m-%d %H:%M:%S %A %j"), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(at(951_782_400, "%d %b %Y, %a %j"), "29 Feb 2000, Tue 060");
        assert_eq!(at(1_735_689_599, "%F %T %p %I %j"), "2024-12-31 23:59:59 PM 11 366");
        assert_eq!(at(4_107_542_400, "%B %-d, %Y (%e) %y"), "March 1, 2100 ( 1) 00");
        assert_eq!(at(1_700_000_000, "%D 100%% %q %"), "11/14/23 100% %q %");
    }
}
