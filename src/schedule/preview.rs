//! When something would recur: asked before it is set.

use super::{Error, Recurrence, Scheduler, When, jobs::Plan};
use crate::{
    authz::Claim,
    domain::{permission::right::SchedulesRead, schedule::Nanos},
};

/// How many times are shown when the caller does not say.
const TIMES_DEFAULT: u32 = 5;
/// How many times are shown at most.
const TIMES_MAX: u32 = 100;

/// The next times of a plan, as a job that is set now would have them.
pub fn preview(
    scheduler: &Scheduler,
    _: &Claim<SchedulesRead>,
    plan: &Plan,
    count: u32,
) -> Result<Vec<Nanos>, Error> {
    let invalid = |field, message| Error::FieldInvalid { field, message };
    let count = match count {
        0 => TIMES_DEFAULT,
        count @ 1..=TIMES_MAX => count,
        count => {
            let message = format!("{count} is too many; at most {TIMES_MAX}");
            return Err(invalid("count", message));
        }
    };
    let Some(text) = plan.recurrence.as_deref() else {
        return Err(invalid("recurrence", "is missing".to_owned()));
    };
    let now = scheduler.now().into();
    let first = plan.when.map(When::nanos);
    let recurrence = Recurrence::parse(text, first.unwrap_or(now))
        .map_err(|message| invalid("recurrence", message))?;
    // A first time that is to come is the first.
    let first = first.filter(|first| *first > now);
    let start = first.unwrap_or(now);
    let later =
        std::iter::successors(recurrence.next_after(start), |at| recurrence.next_after(*at));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Ok(first.into_iter().chain(later).take(count).collect())
}
