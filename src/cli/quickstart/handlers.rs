//! The shop's handlers: small, but what they compute comes from the order and
//! from the steps before them.

use std::time::Duration;

use bailiwick_client::{Client, Error, HandlerError, StepContext, Worker};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// Long enough to watch.
const WORK: Duration = Duration::from_millis(150);
const PRICE_CENTS: u64 = 1_250;

#[derive(Deserialize)]
struct Order {
    order_id: String,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    sku: String,
    quantity: u64,
}

#[derive(Serialize, Deserialize)]
struct Validated {
    pieces: u64,
    total_cents: u64,
}

#[derive(Serialize, Deserialize)]
struct Reserved {
    shelf: String,
    skus: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Charged {
    receipt: String,
    total_cents: u64,
}

#[derive(Serialize, Deserialize)]
struct Shipped {
    tracking: String,
    contents: Vec<String>,
    paid_with: String,
}

#[derive(Serialize)]
struct Confirmed {
    message: String,
}

/// A worker for the shop.
pub(super) fn worker(client: Client) -> Result<Worker, Error> {
    Worker::builder(client)
        .namespace("shop")
        .name("quickstart-worker")
        .handler("validate_order", validate_order)
        .handler("reserve_stock", reserve_stock)
        .handler("charge_payment", charge_payment)
        .handler("ship_order", ship_order)
        .handler("send_confirmation", send_confirmation)
        .concurrency(8)
        .build()
}

async fn validate_order(step: StepContext) -> Result<Validated, HandlerError> {
    let order: Order = step.context()?;
    sleep(WORK).await;
    let pieces = order.items.iter().fold(0_u64, |sum, item| sum.saturating_add(item.quantity));
    Ok(Validated { pieces, total_cents: pieces.saturating_mul(PRICE_CENTS) })
}

async fn reserve_stock(step: StepContext) -> Result<Reserved, HandlerError> {
    let order: Order = step.context()?;
    sleep(WORK * 2).await;
    let skus = order.items.into_iter().map(|item| item.sku).collect();
    Ok(Reserved { shelf: format!("shelf-{}", order.order_id), skus })
}

/// The first attempt of every order meets a gateway that is not there, so
/// that the retry can be seen.
async fn charge_payment(step: StepContext) -> Result<Charged, HandlerError> {
    let order: Order = step.context()?;
    let validated: Validated = step.result("validate_order")?;
    sleep(WORK).await;
    if step.attempt() == 1 {
        return Err(HandlerError::retryable("the payment gateway did not answer"));
    }
    let receipt = format!("receipt-{}-{}", order.order_id, step.attempt());
    Ok(Charged { receipt, total_cents: validated.total_cents })
}

async fn ship_order(step: StepContext) -> Result<Shipped, HandlerError> {
    let reserved: Reserved = step.result("reserve_stock")?;
    let charged: Charged = step.result("charge_payment")?;
    sleep(WORK).await;
    Ok(Shipped {
        tracking: format!("track-{}", step.task_uuid()),
        contents: reserved.skus,
        paid_with: charged.receipt,
    })
}

async fn send_confirmation(step: StepContext) -> Result<Confirmed, HandlerError> {
    let order: Order = step.context()?;
    let shipped: Shipped = step.result("ship_order")?;
    sleep(WORK).await;
    Ok(Confirmed {
        message: format!("Order {} is on its way: {}", order.order_id, shipped.tracking),
    })
}
