//! `strftime` for chat templates: some of them print today's date.
//!
//! Times are UTC. transformers uses the machine's own time zone, which Rust's standard library does not know.
//! Set [`crate::data::TokenizerFiles::now`] for a fixed date, for example to repeat a run on another day.

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

/// Seconds since 1970-01-01 00:00 UTC.
pub fn now() -> Option<i64> {
    let since = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Days since 1970-01-01 as (year, month 1..=12, day 1..=31) of the Gregorian calendar.
///
/// Counts from 1 March of year 0, so that the leap day is the last day of a year; a 400-year era has 146,097
/// days.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as usize, day)
}

/// Python's `strftime` in the C locale for the moment `seconds` (since 1970, UTC).
///
/// Supports `%Y %y %m %d %e %j %b %h %B %a %A %H %I %M %S %p %F %T %Z %%` and glibc's `%-` form, which drops
/// the padding. Any other directive is an error that names it.
pub fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next().ok_or("a date format that ends in %")?;
        let bare = directive == '-';
        if bare {
            directive = chars.next().ok_or("a date format that ends in %-")?;
        }
        out.push_str(&field(directive, bare, seconds)?);
    }
    Ok(out)
}

/// One directive of [`strftime`].
fn field(directive: char, bare: bool, seconds: i64) -> Result<String, String> {
    let days = seconds.div_euclid(86_400);
    let second = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let number = |value: i64, width: usize| {
        if bare { value.to_string() } else { format!("{value:0width$}") }
    };
    let hour = second / 3_600;
    Ok(match directive {
        'Y' => year.to_string(),
        'y' => number(year.rem_euclid(100), 2),
        'm' => number(month as i64, 2),
        'd' => number(day, 2),
        'e' if bare => day.to_string(),
        'e' => format!("{day:2}"),
        'j' => number((1..month).map(|m| month_days(year, m)).sum::<i64>() + day, 3),
        'b' | 'h' => MONTHS[month - 1][..3].into(),
        'B' => MONTHS[month - 1].into(),
        'a' => weekday[..3].into(),
        'A' => weekday.into(),
        'H' => number(hour, 2),
        'I' => number((hour + 11) % 12 + 1, 2),
        'M' => number(second / 60 % 60, 2),
        'S' => number(second % 60, 2),
        'p' => if hour < 12 { "AM" } else { "PM" }.into(),
        'F' => format!("{year}-{month:02}-{day:02}"),
        'T' => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
        'Z' => String::new(), // as Python's naive datetime
        '%' => "%".into(),
        other => return Err(format!("the date directive %{other}, which is not supported")),
    })
}

fn month_days(year: i64, month: usize) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_equal_pythons() {
        // Python: datetime.fromtimestamp(t, timezone.utc).strftime(format)
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %I %p %-d %-m %e %y %%";
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu Thursday Jan January 001 12 AM 1 1  1 70 %"),
            (951_827_696, "2000-02-29 12:34:56 Tue Tuesday Feb February 060 12 PM 29 2 29 00 %"),
            (4_107_542_399, "2100-02-28 23:59:59 Sun Sunday Feb February 059 11 PM 28 2 28 00 %"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue Tuesday Dec December 366 11 PM 31 12 31 24 %"),
            (-1, "1969-12-31 23:59:59 Wed Wednesday Dec December 365 11 PM 31 12 31 69 %"),
        ] {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
        assert_eq!(strftime("%F %T", 951_827_696).unwrap(), "2000-02-29 12:34:56");
    }

    #[test]
    fn unknown_directives_are_named() {
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("50%", 0).is_err());
    }
}
