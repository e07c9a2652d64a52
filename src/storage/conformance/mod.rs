//! What every engine must do, as cases against the traits alone. An engine
//! runs all of them by [`suite`]; an exception is listed there by name.
//!
//! Not here: what one engine alone can show, as a full disk.

pub(crate) mod audit;
pub(crate) mod credentials;
pub(crate) mod elevations;
pub(crate) mod house;
pub(crate) mod leases;
pub(crate) mod queues;
pub(crate) mod recovery;
pub(crate) mod rules;
pub(crate) mod runs;
pub(crate) mod schedules;
pub(crate) mod signing;
pub(crate) mod tasks;
pub(crate) mod templates;
pub(crate) mod workers;

use std::sync::Arc;

use async_trait::async_trait;

use self::house::{TestClock, TestDesk};
use super::Store;

/// A store under test.
#[async_trait]
pub(crate) trait Engine: Sized + Send + Sync {
    /// A new, empty store of its own.
    async fn fresh(desk: Arc<TestDesk>, clock: Arc<TestClock>) -> Self;

    /// The same store after its server went away and came back.
    async fn reopen(self) -> Self;

    /// The store.
    fn store(&self) -> &dyn Store;

    /// Checks what only the engine can see: references, indexes.
    async fn verify(&self);
}

/// Lists every case by name and runs it for an engine.
macro_rules! suite {
    ($engine:ty) => {
        $crate::storage::conformance::suite! { @cases $engine =>
            templates::a_template_registers_once
            templates::the_newest_release_wins
            templates::lists_are_exact_and_scoped
            templates::they_survive_a_restart
            tasks::a_task_reads_back_whole
            tasks::hidden_and_absent_are_one
            tasks::children_hang_on_their_parent
            tasks::a_key_makes_a_task_once
            tasks::keys_belong_to_a_namespace_and_a_template
            tasks::concurrent_creations_under_a_key_make_one
            tasks::lists_page_exactly_over_namespaces
            tasks::lists_filter_by_state_and_name
            tasks::steps_page_by_number
            tasks::events_go_on_behind_a_place
            tasks::a_snapshot_agrees_with_the_events
            tasks::cancelling_ends_leases_and_is_repeatable
            tasks::cures_take_effect_or_say_why_not
            tasks::a_reset_grants_new_attempts
            tasks::stamps_and_reasons_are_kept
            queues::a_waiting_seat_gets_a_new_step_at_once
            queues::a_completion_hands_on_with_results
            queues::inputs_that_no_lease_carries_fail_the_step
            queues::dispatch_goes_by_priority_and_age
            queues::the_older_step_goes_before_the_new_one
            queues::dispatch_stays_in_its_area
            queues::a_diamond_joins_once
            queues::a_queue_without_a_seat_is_told
            queues::a_seat_of_a_failed_operation_goes_back
            leases::a_lease_belongs_to_its_holder
            leases::a_completion_counts_once
            leases::concurrent_completions_count_once
            leases::a_failure_counts_once
            leases::failures_back_off_until_error
            leases::a_permanent_failure_is_not_retried
            leases::heartbeats_extend
            leases::an_expired_lease_is_dead
            leases::a_timeout_is_fixed
            leases::a_stale_result_is_recorded_once
            leases::a_released_lease_costs_nothing
            leases::a_cancelled_lease_learns_why
            leases::expiry_is_bounded_and_tells_the_next
            leases::attempts_are_told_in_order
            leases::texts_of_errors_are_bounded
            recovery::orphaned_leases_hold_for_a_while
            recovery::a_heartbeat_adopts_an_orphan
            recovery::no_lease_is_given_twice
            recovery::what_was_acknowledged_is_there
            recovery::closing_refuses_what_comes_later
            workers::a_worker_is_one_by_area_name_and_principal
            workers::lists_are_scoped_and_paged
            workers::handlers_are_counted_and_paged
            workers::a_check_reaches_the_disk
            elevations::elevations_move_on_from_the_state_they_are_in
            credentials::a_credential_reads_back_after_a_restart
            credentials::a_successor_ends_its_predecessor
            credentials::uses_are_counted_to_the_last
            credentials::a_successor_takes_the_uses_over
            credentials::last_uses_of_permissions_only_move_on
            credentials::what_is_revoked_stays_so
            credentials::recalls_only_move_on
            schedules::a_job_is_set_and_set_anew
            schedules::a_removed_job_leaves_nothing
            schedules::only_held_jobs_are_resumed
            schedules::changes_are_made_in_their_order
            schedules::lists_are_exact_within_a_scope_and_a_prefix
            schedules::odd_names_are_names
            schedules::what_is_due_comes_in_order
            schedules::the_next_time_is_never_missed
            schedules::a_flood_that_is_skipped_hides_nothing
            runs::a_run_begins_once_and_only_as_planned
            runs::a_run_that_ended_says_what_becomes_of_its_job
            runs::an_end_without_a_run_makes_an_entry
            runs::a_job_set_anew_while_it_runs_keeps_what_was_set
            runs::a_job_removed_and_set_while_it_runs_is_another
            runs::interrupted_runs_are_planned_again
            runs::a_history_is_bounded_and_paged
            rules::rules_change_only_as_they_were_seen
            rules::every_runner_and_owner_reads_back
            schedules::counts_are_of_a_scope
            signing::a_signing_key_reads_back_until_it_is_retired
            signing::who_registered_a_template_is_kept
            signing::a_lease_is_seen_as_long_as_it_lives
            signing::se_45_what_steps_make_is_bounded_in_depth_and_number
            signing::se_45_a_cancel_reaches_all_that_descends
            audit::se_44_every_change_of_a_task_brings_its_record
            audit::se_44_what_serves_work_brings_its_record
            audit::se_44_a_change_that_is_not_made_brings_none
            audit::se_44_nobody_makes_chains_by_asking
            audit::se_44_seals_go_on_where_the_last_one_ended
            audit::se_44_what_is_let_go_leaves_the_ends_of_its_chains
            audit::a_sink_goes_on_where_it_was_told
        }
    };
    (@cases $engine:ty => $($module:ident :: $case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                use $crate::storage::conformance::{house::House, $module};
                let mut house = House::<$engine>::new().await;
                $module::$case(&mut house).await;
                house.verify().await;
            }
        )*
    };
}
pub(crate) use suite;
