def tables_of(result):
    return [
        (
            "figures",
            "\n".join(
                f"{f['case']} {f['peer']} {f['metric']}: {f['median']:.4g} ({f['q1']:.4g}-{f['q3']:.4g}) n={len(f['values'])}"
                for f in result["figures"]
            ),
        )
    ]
